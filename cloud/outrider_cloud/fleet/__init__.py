"""The fleet service: who may take part, what devices say, what they are to be, and the drafts they may install.

`home` is a fleet's folder on disk, `pki` its certificates, `broker` Mosquitto's configuration, `plane` the service's
side of MQTT, `artifacts` the signed repository of packs, `simulate` devices with modelled behaviour.
"""
