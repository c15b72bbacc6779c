"""Generated from protos/hekaton/v1 by `make protos`. Do not edit."""
