"""Where to look: from a rough mask to the questions a generalist is asked."""

from tutelage.prompts.settings import PromptSettings

__all__ = ["PromptSettings"]
