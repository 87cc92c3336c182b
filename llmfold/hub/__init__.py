"""The Hugging Face hub: the model card of every output, and pushing an output there."""

from llmfold.hub.push import Target, check_login, push

__all__ = ["Target", "check_login", "push"]
