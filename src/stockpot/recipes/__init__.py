"""Recipes: one screen each; a recipe says only what differs from `Config`'s defaults."""
