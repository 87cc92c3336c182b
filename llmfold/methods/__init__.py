"""Methods: what they look at, and how each folds or prunes one layer at a time.

A method is a package here or in :mod:`llmfold.methods.baselines`. Its ``__init__`` says what it is, without torch.
"""

import pkgutil
from importlib import import_module

from llmfold.methods import baselines

for _home in (__path__, baselines.__path__):
    for _module in pkgutil.iter_modules(_home):
        if _module.ispkg:
            import_module(f"{__name__}.{'baselines.' if _home is baselines.__path__ else ''}{_module.name}")
