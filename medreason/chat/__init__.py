"""Talk with a run: questions in, reasoning and answers apart out, in a terminal or on a page."""
