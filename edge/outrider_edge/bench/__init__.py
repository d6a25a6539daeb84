"""`outrider bench link`: ours against honest baselines over an emulated link, in one run over the same requests.

`methods` says what is compared, `relay` is the co-located baseline's process, `processes` starts and stops what takes
part, `measure` takes one answer's figures, `grid` conducts, `summary` and `plots` tell.
"""
