"""A table of models x data sets x missing rates: cells run as Ray jobs, and a report of their results.

schema, matrix (the YAML file and its cells) -> archive (runs and kept results) -> jobs (run cells) ->
collect (with statistics) -> goals -> report.
"""
