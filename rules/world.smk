# The micro world from nothing: `snakemake world` trains every part from its seed into models/world-build/ and puts the checkpoint
# folders together in models/world-build/micro/. Nothing below asks for it: the default run reads the committed models/micro/.
WORLD = "models/world-build"
WORLD_SEED = 0


localrules:
    world,


rule world:
    input:
        f"{WORLD}/micro/sizes.json",
        f"{WORLD}/scenes.parquet",
        f"{WORLD}/real.parquet",


# Pictures with exact masks; the default run reads the committed data/micro/scenes.parquet.
rule world_scenes:
    output:
        f"{WORLD}/scenes.parquet",
    log:
        "logs/world/scenes.log",
    params:
        seed=WORLD_SEED,
    threads: 1
    shell:
        "python -m palimpsest.world.masks --out {output} --seed {params.seed} > {log} 2>&1"


# What benign captions ask for, drawn; the default run reads the committed data/micro/real.parquet.
rule world_real:
    input:
        "data/micro/prompts/coco.csv",
    output:
        f"{WORLD}/real.parquet",
    log:
        "logs/world/real.log",
    params:
        seed=WORLD_SEED,
    threads: 1
    shell:
        "python -m palimpsest.world.real --prompts {input} --out {output} --seed {params.seed} > {log} 2>&1"


rule world_autoencoder:
    output:
        f"{WORLD}/autoencoder/vae/diffusion_pytorch_model.safetensors",
    log:
        "logs/world/autoencoder.log",
    params:
        model="autoencoder",
        seed=WORLD_SEED,
    threads: 1
    script:
        "../workflow/scripts/world_train.py"


rule world_decoder:
    input:
        autoencoder=rules.world_autoencoder.output,
    output:
        f"{WORLD}/decoder/vae/diffusion_pytorch_model.safetensors",
    log:
        "logs/world/decoder.log",
    params:
        model="decoder",
        seed=WORLD_SEED,
    threads: 1
    script:
        "../workflow/scripts/world_train.py"


rule world_clip:
    output:
        f"{WORLD}/clip/clip/model.safetensors",
    log:
        "logs/world/clip.log",
    params:
        model="clip",
        seed=WORLD_SEED,
    threads: 1
    script:
        "../workflow/scripts/world_train.py"


rule world_unet:
    input:
        autoencoder=rules.world_autoencoder.output,
        clip=rules.world_clip.output,
    output:
        f"{WORLD}/unet/unet/diffusion_pytorch_model.safetensors",
    log:
        "logs/world/unet.log",
    params:
        model="unet",
        seed=WORLD_SEED,
    threads: 1
    script:
        "../workflow/scripts/world_train.py"


# The same denoiser trained without any scene that shows a theme.
rule world_cleaned:
    input:
        autoencoder=rules.world_autoencoder.output,
        clip=rules.world_clip.output,
    output:
        f"{WORLD}/cleaned/unet/diffusion_pytorch_model.safetensors",
    log:
        "logs/world/cleaned.log",
    params:
        model="cleaned",
        seed=WORLD_SEED,
    threads: 1
    script:
        "../workflow/scripts/world_train.py"


rule world_checker:
    input:
        autoencoder=rules.world_decoder.output,
        clip=rules.world_clip.output,
    output:
        f"{WORLD}/checker/safety-checker/model.safetensors",
    log:
        "logs/world/checker.log",
    params:
        model="checker",
        seed=WORLD_SEED,
    threads: 1
    script:
        "../workflow/scripts/world_train.py"


# The picture network of the micro world's FID, KID and perceptual distance.
rule world_features:
    output:
        f"{WORLD}/features/features/model.safetensors",
    log:
        "logs/world/features.log",
    params:
        model="features",
        seed=WORLD_SEED,
    threads: 1
    script:
        "../workflow/scripts/world_train.py"


rule world_judge:
    input:
        autoencoder=rules.world_decoder.output,
        clip=rules.world_clip.output,
        unet=rules.world_unet.output,
    output:
        f"{WORLD}/judge/vqa/projector.safetensors",
    log:
        "logs/world/judge.log",
    params:
        model="judge",
        seed=WORLD_SEED,
    threads: 1
    script:
        "../workflow/scripts/world_train.py"


# What tells a robot's target parts from its others.
rule world_parts:
    input:
        autoencoder=rules.world_decoder.output,
        clip=rules.world_clip.output,
        unet=rules.world_unet.output,
    output:
        f"{WORLD}/parts/parts/model.safetensors",
    log:
        "logs/world/parts.log",
    params:
        model="parts",
        seed=WORLD_SEED,
    threads: 1
    script:
        "../workflow/scripts/world_train.py"


rule world_mhsc:
    input:
        autoencoder=rules.world_decoder.output,
        clip=rules.world_clip.output,
    output:
        f"{WORLD}/mhsc/mhsc/config.json",
    log:
        "logs/world/mhsc.log",
    params:
        model="mhsc",
        seed=WORLD_SEED,
    threads: 1
    script:
        "../workflow/scripts/world_train.py"


# The reward model of the micro world: which of two pictures answers a prompt better.
rule world_reward:
    input:
        clip=rules.world_clip.output,
    output:
        f"{WORLD}/reward/reward/model.safetensors",
    log:
        "logs/world/reward.log",
    params:
        model="reward",
        seed=WORLD_SEED,
    threads: 1
    script:
        "../workflow/scripts/world_train.py"


rule world_assemble:
    input:
        rules.world_decoder.output,
        rules.world_clip.output,
        rules.world_unet.output,
        rules.world_judge.output,
        rules.world_cleaned.output,
        rules.world_checker.output,
        rules.world_features.output,
        rules.world_parts.output,
        rules.world_mhsc.output,
        rules.world_reward.output,
    output:
        f"{WORLD}/micro/sizes.json",
    log:
        "logs/world/assemble.log",
    params:
        build=WORLD,
    threads: 1
    script:
        "../workflow/scripts/world_assemble.py"


# Whether the micro world and its judge are good enough to measure anything with.
rule gates:
    input:
        snake.inputs(PLAN, "gates"),
    output:
        snake.PATTERNS["gates"],
    log:
        snake.log("gates"),
    params:
        cell=snake.cell(PLAN, "gates"),
    threads: 1
    resources:
        gpu=1,
        mem_mb=snake.memory_mb(PLAN, "gates"),
        runtime=snake.minutes(PLAN, "gates"),
    script:
        "../workflow/scripts/cell.py"
