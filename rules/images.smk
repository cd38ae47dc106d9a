# Training images for methods that need them.
rule images:
    input:
        snake.inputs(PLAN, "images"),
    output:
        snake.PATTERNS["images"],
    log:
        snake.log("images"),
    params:
        cell=snake.cell(PLAN),
    threads: 1
    resources:
        gpu=1,
    script:
        "../workflow/scripts/cell.py"
