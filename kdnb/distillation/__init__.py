"""From a teacher and a student to a run: the teacher and its stored outputs, loss, training loop, a whole run."""
