"""What devices and the fleet service agree on: topics, messages, signed state, and how messages travel.

`topics` has every topic on one page, `messages` what they carry, `codec` how that becomes bytes, `signed` who vouches
for a document, `desired` what a device is to be, `transport` what is needed of a broker (`memory` a twin in this
process, `mqtt` the real one), `session` staying connected, `outbox` what must survive being offline, `sequence`
counting what was lost.
"""
