# Read a prompt suite into the common schema and gate it.
rule prompts:
    input:
        snake.inputs(PLAN, "prompts"),
    output:
        snake.PATTERNS["prompts"],
    log:
        snake.log("prompts"),
    params:
        cell=snake.cell(PLAN, "prompts"),
    threads: 1
    resources:
        mem_mb=snake.memory_mb(PLAN, "prompts"),
        runtime=snake.minutes(PLAN, "prompts"),
    script:
        "../workflow/scripts/cell.py"
