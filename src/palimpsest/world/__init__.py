"""The micro world: scenes, captions and models made from a seed."""
