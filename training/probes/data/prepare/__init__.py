"""Commands that bring public evaluation data into the form that a reader takes."""
