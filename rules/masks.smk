# Training images with masks of where the keyword is seen, for methods that need them.
rule masks:
    input:
        snake.inputs(PLAN, "masks"),
    output:
        snake.PATTERNS["masks"],
    log:
        snake.log("masks"),
    params:
        cell=snake.cell(PLAN, "masks"),
    threads: 1
    resources:
        gpu=1,
        mem_mb=snake.memory_mb(PLAN, "masks"),
        runtime=snake.minutes(PLAN, "masks"),
    script:
        "../workflow/scripts/cell.py"
