"""Several folds of one model, scored on one text: ``llmfold compare``."""
