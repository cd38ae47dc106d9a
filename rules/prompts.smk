# Read a prompt suite into the common schema and gate it.
rule prompts:
    input:
        snake.inputs(PLAN, "prompts"),
    output:
        snake.PATTERNS["prompts"],
    log:
        snake.log("prompts"),
    params:
        cell=snake.cell(PLAN),
    threads: 1
    script:
        "../workflow/scripts/cell.py"
