"""Generated from protos/hekaton/oip by `make protos`. Do not edit."""
