"""Bringing key/value groups to a common gauge before they are merged.

A group's function does not change under an invertible matrix between its values and its output projections, nor, under
RoPE, under one rotation and one scale per frequency pair shared by its queries and its key. Two groups may compute the
same and still look different; here each is balanced, and one is turned onto the other in closed form (orthogonal
Procrustes). RoPE follows the half-split layout of Hugging Face: dimension i is paired with i + head_dim / 2.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDS = 4
_EXHAUSTIVE = 3
_TINY = 1e-30


@dataclass(frozen=True)
class HeadGroups:
    """All key/value groups of a layer, in the dtype of computation.

    G groups of r query heads; ``e`` is the hidden size, plus one where the projection has a bias.

    Attributes:
        q: (G, r, head_dim, e).
        k: (G, head_dim, e).
        v: (G, head_dim, e).
        o: (G, r, hidden, head_dim).
        qk_norm: queries and keys pass an RMSNorm, whose gains leave only signs and whole-head scales free.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    qk_norm: bool = False

    def __len__(self) -> int:
        """Number of groups."""
        return self.k.shape[0]

    def squared_norms(self) -> Tensor:
        """(G,) squared Frobenius norm of each group's tensors together."""
        return torch.stack([t.square().flatten(1).sum(1) for t in (self.q, self.k, self.v, self.o)]).sum(0)


@dataclass(frozen=True)
class Alignment:
    """How one group is turned onto another.

    Attributes:
        heads: (r,) query head ``heads[j]`` of the turned group meets head j of the other.
        angles: (head_dim / 2,) rotation of each frequency pair, radians.
        rotation: (head_dim, head_dim) orthogonal matrix applied to the values.
        gain: inner product of the two groups' tensors after turning.
    """

    heads: Tensor
    angles: Tensor
    rotation: Tensor
    gain: float


def _pairs(x: Tensor) -> Tensor:
    """Rows (…, head_dim, e) as complex rows (…, head_dim / 2, e), one per frequency pair."""
    first, second = x.chunk(2, dim=-2)
    return torch.complex(first.contiguous(), second.contiguous())


def _scale_pairs(x: Tensor, factor: Tensor) -> Tensor:
    return x * torch.cat((factor, factor), -1).unsqueeze(-1)


def balance(groups: HeadGroups) -> HeadGroups:
    """Fix the free scales: values as large as outputs, queries as large as keys in every frequency pair.

    Under ``qk_norm`` the scales of queries and keys have no effect at all; every head is brought to the mean norm.
    """
    r = groups.q.shape[1]
    ratio = groups.o.flatten(1).norm(dim=1) / r**0.5 / groups.v.flatten(1).norm(dim=1).clamp_min(_TINY)
    s = _safe(ratio.sqrt())[:, None, None]
    v, o = groups.v * s, groups.o / s[:, None]
    if groups.qk_norm:
        q_norm, k_norm = groups.q.flatten(2).norm(dim=2), groups.k.flatten(1).norm(dim=1)
        q = groups.q * _safe(q_norm.mean() / q_norm.clamp_min(_TINY))[..., None, None]
        k = groups.k * _safe(k_norm.mean() / k_norm.clamp_min(_TINY))[..., None, None]
    else:
        q_norm = _pairs(groups.q).abs().square().sum((1, 3)).sqrt() / r**0.5
        k_norm = _pairs(groups.k).abs().square().sum(2).sqrt()
        t = _safe((k_norm / q_norm.clamp_min(_TINY)).sqrt())
        q, k = _scale_pairs(groups.q, t[:, None]), _scale_pairs(groups.k, 1 / t)
    return HeadGroups(q, k, v, o, groups.qk_norm)


def _safe(scale: Tensor) -> Tensor:
    """A group with a zero part has no scale to balance."""
    return torch.where((scale > 1e-6) & (scale < 1e6), scale, torch.ones_like(scale))


class PairwiseAligner:
    """Aligns any two of a layer's groups from cross products that are computed once."""

    def __init__(self, groups: HeadGroups) -> None:
        """Precompute cross products.

        Args:
            groups: balanced groups; see :func:`balance`.
        """
        count, r = groups.q.shape[:2]
        dim = groups.k.shape[1]
        self.groups, self.shape = groups, (count, r, dim)
        q, k = _pairs(groups.q).flatten(0, 1), _pairs(groups.k)
        self._qq = torch.einsum("ape,bpe->abp", q.conj(), q).view(count, r, count, r, -1)
        self._kk = torch.einsum("ape,bpe->abp", k.conj(), k)
        v = groups.v.flatten(0, 1)
        o = groups.o.transpose(2, 3).flatten(0, 2)
        self._vv = (v @ v.T).view(count, dim, count, dim)
        self._oo = (o @ o.T).view(count, r, dim, count, r, dim)
        self._norms = groups.squared_norms()

    def align(self, a: int, b: int) -> Alignment:
        """Turn group ``b`` onto group ``a``.

        Up to three query heads every matching is tried; with more, query heads and rotations are matched in turn until
        neither changes, from two starts: a local optimum, which may depend on the order of the heads.
        """
        r = self.shape[1]
        if r <= _EXHAUSTIVE:
            alignments = (self._solve(a, b, torch.tensor(heads)) for heads in itertools.permutations(range(r)))
        else:
            starts = (torch.arange(r), self._invariant_matching(a, b))
            alignments = (self._refine(a, b, start) for start in starts)
        return max(alignments, key=lambda alignment: alignment.gain)

    def distances(self) -> Tensor:
        """(G, G) squared distances after alignment, symmetric, zero diagonal, on the CPU."""
        count = self.shape[0]
        out = torch.zeros(count, count, dtype=self._norms.dtype)
        for a in range(count):
            for b in range(a):
                gap = self._norms[a] + self._norms[b] - 2 * self.align(a, b).gain
                out[a, b] = out[b, a] = float(gap.clamp_min(0))
        return out

    def _refine(self, a: int, b: int, heads: Tensor) -> Alignment:
        best = self._solve(a, b, heads)
        for _ in range(_ROUNDS):
            matched = self._match(a, b, best)
            if torch.equal(matched, best.heads):
                break
            alignment = self._solve(a, b, matched)
            if alignment.gain <= best.gain:
                break
            best = alignment
        return best

    def _solve(self, a: int, b: int, heads: Tensor) -> Alignment:
        """Best rotations for a given matching of heads."""
        heads_of_a = torch.arange(len(heads))
        turn = self._kk[a, b] + self._qq[a, heads_of_a, b, heads].sum(0)
        if self.groups.qk_norm:
            angles = (turn.real < 0) * torch.full_like(turn.real, torch.pi)
            rope_gain = turn.real.abs().sum()
        else:
            angles, rope_gain = -turn.angle(), turn.abs().sum()
        cross = self._vv[a, :, b] + self._oo[a, heads_of_a, :, b, heads].sum(0)
        left, values, right = torch.linalg.svd(cross)
        return Alignment(heads, angles, left @ right, float(rope_gain + values.sum()))

    def _match(self, a: int, b: int, alignment: Alignment) -> Tensor:
        """Best matching of query heads for given rotations."""
        turned = torch.polar(torch.ones_like(alignment.angles), alignment.angles)
        queries = (self._qq[a, :, b] * turned).real.sum(-1)
        outputs = torch.einsum("jxly,xy->jl", self._oo[a, :, :, b], alignment.rotation)
        return _assign(queries + outputs)

    def _invariant_matching(self, a: int, b: int) -> Tensor:
        """Matching by inner products that no gauge can change: of the heads' QK circuits and of their OV circuits."""
        norms = [[c.diagonal().mean() for c in self._circuits(group, group)] for group in (a, b)]
        scales = [(of_a * of_b).sqrt().clamp_min(_TINY) for of_a, of_b in zip(*norms, strict=True)]
        query_key, output_value = self._circuits(a, b)
        return _assign(query_key / scales[0] + output_value / scales[1])

    def _circuits(self, a: int, b: int) -> tuple[Tensor, Tensor]:
        """(r, r) inner products of the QK circuits, and of the OV circuits, of the heads of two groups."""
        query_key = (self._qq[a, :, b] * self._kk[a, b].conj()).real.sum(-1)
        return query_key, torch.einsum("jxly,xy->jl", self._oo[a, :, :, b], self._vv[a, :, b])

    def turn(self, b: int, alignment: Alignment) -> HeadGroups:
        """Group ``b`` alone, turned by an alignment."""
        g, angles = self.groups, alignment.angles
        heads = alignment.heads.to(g.q.device)
        cos, sin = angles.cos(), angles.sin()
        if g.qk_norm:  # signs, exactly: the sine of a rounded pi is not zero
            cos, sin = cos.round(), sin.round()
        rotation = alignment.rotation
        return HeadGroups(
            _rotate_pairs(g.q[b, heads], cos, sin)[None],
            _rotate_pairs(g.k[b], cos, sin)[None],
            (rotation @ g.v[b])[None],
            (g.o[b, heads] @ rotation.T)[None],
            g.qk_norm,
        )


def _rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-2)
    c, s = cos[:, None], sin[:, None]
    return torch.cat((first * c - second * s, first * s + second * c), dim=-2)


def _assign(similarity: Tensor) -> Tensor:
    from scipy.optimize import linear_sum_assignment  # half a second that only aligned heads need

    _, columns = linear_sum_assignment(similarity.cpu().numpy(), maximize=True)
    return torch.from_numpy(columns)
