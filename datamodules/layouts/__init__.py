"""Folders of images as people have them on disk, read as clean images or as pairs; opens no image."""

from datamodules.layouts.items import Item
from datamodules.layouts.recognise import LAYOUTS, Found, find, look

__all__ = ["LAYOUTS", "Found", "Item", "find", "look"]
