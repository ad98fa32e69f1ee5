"""The requests and replies that services exchange over NATS, one Struct each, and the records they keep in KV.

The subject of each is `Names.rpc(service, operation)`; the module is the service that answers.
A refused request is answered with a `Problem` (see `errors`).
"""
