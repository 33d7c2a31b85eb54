"""``studio evaluate``: methods at equal cost, or recipes as they are, against the known truth of their prompts.

truth      the toy that a prompt names, and how like it a scene is
cost       evaluations of the prior that a method takes, known before a run
contenders what is compared, by name
trial      one run, measured on the way
protocol   all runs, one file each, so that the whole resumes
tables     rows of a summary, as JSON and in words
plot, sheet   quality against compute; what it looks like
"""
