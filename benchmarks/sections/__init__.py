"""One file per section. Each has TITLE, BUDGETS and run(options, results)."""
