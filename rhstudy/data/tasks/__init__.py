"""The real tasks; each turns public rows into questions, gold passages and needle spans."""
