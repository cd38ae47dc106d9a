"""How the columns of the table of quality are called and read, in the order in which they are shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Name:
    """A metric as tables and sentences call it. better: "higher" or "lower"; digits: how many its values are shown with."""

    metric: str
    head: str
    digits: int
    better: str


SHOWN = (
    Name("clip_score", "CLIPScore", 2, "higher"),
    Name("image_reward", "ImageReward", 3, "higher"),
    Name("fid_clean", "FID (clean)", 2, "lower"),
    Name("fid_pytorch", "FID (pytorch)", 2, "lower"),
    Name("fid_base_clean", "FID to base (clean)", 2, "lower"),
    Name("fid_base_pytorch", "FID to base (pytorch)", 2, "lower"),
    Name("kid_clean", "KID (clean)", 4, "lower"),
    Name("kid_base_clean", "KID to base (clean)", 4, "lower"),
    Name("lpips_drift", "LPIPS drift", 3, "lower"),
    Name("lpips_drift_256", "LPIPS drift, 256 px", 3, "lower"),
    Name("lpips_real", "LPIPS to real", 3, "lower"),
    Name("lpips_paper", "LPIPS as in the paper", 3, "lower"),
    Name("lpips_micro", "LPIPS drift (micro)", 3, "lower"),
    Name("fid_micro", "FID (micro)", 2, "lower"),
    Name("fid_base_micro", "FID to base (micro)", 2, "lower"),
    Name("kid_micro", "KID (micro)", 3, "lower"),
    Name("kid_base_micro", "KID to base (micro)", 3, "lower"),
)
NAMES = {one.metric: one for one in SHOWN}

# What speaks for an aspect of preservation: of each line the first metric that was measured, so that no aspect counts the same thing twice.
# FID wants real pictures, else the base's. Of the forms of LPIPS the distance to the base's picture of the same seed tells methods apart;
# the distance to a real picture is that of two unrelated ones, whatever the method.
ROLES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("image quality", ("fid_pytorch", "fid_clean", "fid_micro", "fid_base_pytorch", "fid_base_clean", "fid_base_micro")),
    ("image quality", ("lpips_drift", "lpips_drift_256", "lpips_micro", "lpips_real", "lpips_paper")),
    ("semantic alignment", ("clip_score",)),
    ("semantic alignment", ("image_reward",)),
)  # fmt: skip
# The columns of the published tables, by the metric here that is computed in the same way.
PUBLISHED = {"fid": "fid_pytorch", "lpips": "lpips_paper", "clips": "clip_score", "ir": "image_reward"}
CHANGE = "_change"
