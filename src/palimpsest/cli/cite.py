"""`palimpsest cite`: BibTeX of what an experiment stands on. Methods bring their own entries (INFO.bibtex)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from palimpsest.plan.build import Plan

BENCHMARK = """@article{chen2025nsfwerasure,
  title={Comprehensive Evaluation and Analysis for NSFW Concept Erasure in Text-to-Image Diffusion Models},
  author={Chen, Die and Li, Zhiwen and Chen, Cen and Xie, Yuexiang and Li, Xiaodan and Ye, Jinyan and Chen, Yingda and Li, Yaliang},
  year={2025}
}"""

SOFTWARE = """@software{palimpsest,
  title={Palimpsest: a reproducible pipeline that measures concept erasure in text-to-image diffusion models},
  author={{The Palimpsest contributors}},
  license={Apache-2.0},
  year={2026}
}"""

MODELS = """@inproceedings{rombach2022high,
  title={High-Resolution Image Synthesis with Latent Diffusion Models},
  author={Rombach, Robin and Blattmann, Andreas and Lorenz, Dominik and Esser, Patrick and Ommer, Bj{\\"o}rn},
  booktitle={Conference on Computer Vision and Pattern Recognition},
  year={2022}
}"""

SAMPLERS = {
    "dpmsolver++": """@article{lu2022dpmpp,
  title={{DPM-Solver++}: Fast Solver for Guided Sampling of Diffusion Probabilistic Models},
  author={Lu, Cheng and Zhou, Yuhao and Bao, Fan and Chen, Jianfei and Li, Chongxuan and Zhu, Jun},
  journal={arXiv preprint arXiv:2211.01095},
  year={2022}
}""",
    "ddim": """@inproceedings{song2021denoising,
  title={Denoising Diffusion Implicit Models},
  author={Song, Jiaming and Meng, Chenlin and Ermon, Stefano},
  booktitle={International Conference on Learning Representations},
  year={2021}
}""",
    "pndm": """@inproceedings{liu2022pseudo,
  title={Pseudo Numerical Methods for Diffusion Models on Manifolds},
  author={Liu, Luping and Ren, Yi and Lin, Zhijie and Zhao, Zhou},
  booktitle={International Conference on Learning Representations},
  year={2022}
}""",
    "lms": """@inproceedings{karras2022elucidating,
  title={Elucidating the Design Space of Diffusion-Based Generative Models},
  author={Karras, Tero and Aittala, Miika and Aila, Timo and Laine, Samuli},
  booktitle={Advances in Neural Information Processing Systems},
  year={2022}
}""",
}
SAMPLERS["euler"] = SAMPLERS["lms"]

TOOLS = (
    """@article{molder2021sustainable,
  title={Sustainable data analysis with {Snakemake}},
  author={M{\\"o}lder, Felix and Jablonski, Kim Philipp and Letcher, Brice and Hall, Michael B and Tomkins-Tinch, Christopher H
    and Sochat, Vanessa and Forster, Jan and Lee, Soohyun and Twardziok, Sven O and Kanitz, Alexander and Wilm, Andreas
    and Holtgrewe, Manuel and Rahmann, Sven and Nahnsen, Sven and K{\\"o}ster, Johannes},
  journal={F1000Research},
  volume={10},
  number={33},
  year={2021}
}""",
    """@misc{dvc,
  title={{DVC}: Data Version Control - Git for Data \\& Models},
  author={Kuprieiev, Ruslan and others},
  doi={10.5281/zenodo.3677553},
  year={2020}
}""",
    """@inproceedings{paszke2019pytorch,
  title={{PyTorch}: An Imperative Style, High-Performance Deep Learning Library},
  author={Paszke, Adam and Gross, Sam and Massa, Francisco and Lerer, Adam and Bradbury, James and others},
  booktitle={Advances in Neural Information Processing Systems},
  year={2019}
}""",
    """@misc{vonplaten2022diffusers,
  title={Diffusers: State-of-the-art diffusion models},
  author={von Platen, Patrick and Patil, Suraj and Lozhkov, Anton and Cuenca, Pedro and Lambert, Nathan and others},
  howpublished={\\url{https://github.com/huggingface/diffusers}},
  year={2022}
}""",
    """@inproceedings{wolf2020transformers,
  title={Transformers: State-of-the-Art Natural Language Processing},
  author={Wolf, Thomas and Debut, Lysandre and Sanh, Victor and Chaumond, Julien and Delangue, Clement and others},
  booktitle={Empirical Methods in Natural Language Processing: System Demonstrations},
  year={2020}
}""",
)


def entries(plan: Plan) -> list[str]:
    """BibTeX entries without repeats: this software, benchmark, model family, methods, samplers, judges, networks of masks, tools."""
    from palimpsest.segmenters import registry as segmenters

    methods = [
        dict(run.about).get("bibtex", importlib.import_module(run.module).INFO.bibtex) for run in plan.runs
    ]
    samplers = [SAMPLERS[run.sampler.name] for run in plan.runs]
    judges = [found.detector.INFO.bibtex for found in plan.detectors.values()]
    masked = any(cell.step == "masks" for cell in plan.cells.values())
    networks = segmenters.chosen(plan.params).segmenter.INFO.bibtex if masked else ()
    found = [SOFTWARE, BENCHMARK, MODELS, *methods, *samplers, *judges, *networks, *TOOLS]
    by_key: dict[str, str] = {}
    for entry in filter(None, map(str.strip, found)):
        by_key.setdefault(entry.partition("{")[2].partition(",")[0].strip(), entry)
    return list(by_key.values())
