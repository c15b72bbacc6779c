from fakes.redis import redis, redis_server

__all__ = ["redis", "redis_server"]
