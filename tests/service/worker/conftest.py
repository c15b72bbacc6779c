from fakes.driven import driven
from fakes.redis import redis, redis_server

__all__ = ["driven", "redis", "redis_server"]
