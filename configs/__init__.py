"""Configs and the tiny model that ship with the package."""
