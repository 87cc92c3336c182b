"""Which engines load a folder, and why not, by their own rules; no engine is run, nor torch imported."""

from llmfold.engines.facts import Facts as Facts
from llmfold.engines.facts import read_facts as read_facts
from llmfold.engines.table import ENGINES as ENGINES
from llmfold.engines.table import doctor as doctor
from llmfold.engines.table import verdicts as verdicts
from llmfold.engines.verdict import Verdict as Verdict
