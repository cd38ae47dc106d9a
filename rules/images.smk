# Training images for methods that need them.
rule images:
    input:
        snake.inputs(PLAN, "images"),
    output:
        snake.PATTERNS["images"],
    log:
        snake.log("images"),
    params:
        cell=snake.cell(PLAN, "images"),
    threads: 1
    resources:
        gpu=1,
        mem_mb=snake.memory_mb(PLAN, "images"),
        runtime=snake.minutes(PLAN, "images"),
    script:
        "../workflow/scripts/cell.py"
