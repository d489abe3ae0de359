"""The names and values of a class of config.py, so that no list of settings is written twice."""

from dataclasses import fields

from config import Settings


def field_names(settings_class: type) -> list[str]:
    """The names of a class of config.py: field_names(config.Model) gives ["block_size", "n_layer", ...]."""
    return [field.name for field in fields(settings_class)]


def values_of(settings: Settings, settings_class: type) -> dict:
    """The settings that belong to a class of config.py: values_of(CHAR, Model) gives {"block_size": 128, ...}."""
    return {name: getattr(settings, name) for name in field_names(settings_class)}
