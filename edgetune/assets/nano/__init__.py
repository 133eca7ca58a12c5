"""`edgetune:nano`: the embedded base model, and the code that made it (tokenizer, tasks, pretraining, export)."""
