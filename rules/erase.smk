# Fit one method on one variant.
rule erase:
    input:
        snake.inputs(PLAN, "erase"),
    output:
        snake.PATTERNS["erase"],
    log:
        snake.log("erase"),
    params:
        cell=snake.cell(PLAN),
    threads: 1
    resources:
        gpu=1,
    script:
        "../workflow/scripts/cell.py"
