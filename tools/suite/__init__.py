"""A table of models x data sets x missing rates, run as Ray jobs and reported from what they left.

schema, plan (the YAML file, its cells) -> jobs (a Ray cluster's job server) -> work (cells as jobs, resumable) ->
collect (their results) -> bootstrap, experts, figures -> tables, pictures, report.
"""
