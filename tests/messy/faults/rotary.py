"""Rotary positions in the words of many releases, and in words of none."""

from collections.abc import Mapping
from typing import Any

from messy.faults.config_keys import GONE, set_config
from messy.faults.kind import Kind


def _scaled(kind: str, **fields: object) -> dict[str, Any]:
    """Rotary scaling in the words of transformers 4."""
    return {"rope_parameters": GONE, "rope_theta": 10000.0, "rope_scaling": {kind: fields.pop("named"), **fields}}


_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
_ROPES: tuple[Mapping[str, Any], ...] = (
    {"rope_parameters": GONE, "rope_theta": 500000.0},
    {"rope_parameters": GONE, "rope_theta": 500000},
    {"rope_theta": 500000.0},
    {"rope_parameters": {"rope_theta": 500000.0}},
    {"rope_parameters": {"rope_type": "default"}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}, "rope_scaling": None},
    {"rope_parameters": None, "rope_scaling": None},
    _scaled("type", named="linear", factor=2.0),
    _scaled("rope_type", named="linear", factor=2),
    _scaled("type", named="dynamic", factor=2.0),
    _scaled("rope_type", named="llama3", **_LLAMA3),
    _scaled("rope_type", named="yarn", factor=2.0, original_max_position_embeddings=64),
    _scaled("type", named="yarn", factor=2.0),
    _scaled("rope_type", named="longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4, factor=2.0),
    _scaled("type", named="default"),
    _scaled("rope_type", named="default", type="default"),
    {"rope_scaling": {"type": "linear", "factor": 4.0}},
    {"rope_scaling": {"rope_type": "linear"}},
    {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0, "beta_fast": 32}},
    {"partial_rotary_factor": 0.5},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    {"rope_interleaved": False},
)
_GRAVE_ROPES: tuple[Mapping[str, Any], ...] = (
    _scaled("type", named="su", short_factor=[1.0] * 4, long_factor=[2.0] * 4),
    _scaled("type", named="mrope", mrope_section=[1, 1, 2]),
    _scaled("rope_type", named="no such"),
    _scaled("rope_type", named="llama3", factor=8.0),
    _scaled("rope_type", named="linear", factor="2"),
    {"rope_parameters": "default"},
    {"rope_parameters": {"rope_type": "default", "rope_theta": "10000"}},
    {"rope_scaling": [2.0]},
    {"rope_scaling": "linear"},
    {"rope_theta": None, "rope_parameters": GONE},
)
KINDS = {
    "rotary positions": Kind(set_config, _ROPES),
    "bad rotary positions": Kind(set_config, _GRAVE_ROPES),
}
