"""Text classifiers: labelled texts, tokens and batches, teacher and student of transformers, soft-label distillation."""
