"""Looking at programs: which nodes of one stand for which of another, and what differs."""
