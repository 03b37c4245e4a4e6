"""What is raised where a configuration cannot be."""


class ConfigError(ValueError):
    """The configuration asks for something that cannot be done. The message names the key and the remedy."""
