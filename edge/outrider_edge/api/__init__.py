"""The device's local endpoint: what applications on the device speak to.

`app` has the routes, `schemas` what may be asked, `asks` what a request means, `desk` answers it, `replies` writes the
answer down; `guard` decides who may ask, `daemon` is the process around it.
"""
