"""`outrider edge chat`: a conversation in a terminal.

`talk` goes round: `lines` takes what is typed, `commands` are what begins with a slash, `transcript` is what was said,
`endpoint` (a daemon) or `direct` (a cloud, without one) answers, `screen` shows it.
"""
