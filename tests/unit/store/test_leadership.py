import asyncio
import time

from redis.asyncio import Redis

from hekaton.store.keys import Keys
from hekaton.store.leadership import Leadership


async def test_one_leads_at_a_time(redis: Redis) -> None:
    leadership = Leadership(redis)
    assert await leadership.current() is None
    term = await leadership.acquire("s1", 5)
    assert term is not None
    assert await leadership.acquire("s2", 5) is None
    assert await leadership.current() == ("s1", term)


async def test_terms_grow_and_follow_the_clock(redis: Redis) -> None:
    leadership = Leadership(redis)
    first = await leadership.acquire("s1", 5)
    assert first is not None
    assert abs(first - time.time() * 1000) < 5000
    assert await leadership.release("s1", first)
    second = await leadership.acquire("s1", 5)
    assert second is not None
    assert second > first
    assert await redis.ttl(Keys().term) == -1


async def test_a_refused_leader_gets_a_term_above_the_refused_one(redis: Redis) -> None:
    assert await Leadership(redis).acquire("s1", 5, at_least=10**14) == 10**14


async def test_a_lease_that_is_not_renewed_goes_to_another(redis: Redis) -> None:
    leadership = Leadership(redis)
    first = await leadership.acquire("s1", 0.02)
    assert first is not None
    await asyncio.sleep(0.03)
    second = await leadership.acquire("s2", 5)
    assert second is not None
    assert second > first
    assert not await leadership.renew("s1", first, 5)
    assert not await leadership.release("s1", first)
    assert await leadership.renew("s2", second, 5)
    assert await leadership.current() == ("s2", second)


async def test_a_late_renewal_holds_if_nobody_else_led(redis: Redis) -> None:
    leadership = Leadership(redis)
    term = await leadership.acquire("s1", 0.01)
    assert term is not None
    await asyncio.sleep(0.02)
    assert await leadership.renew("s1", term, 5)
    assert await leadership.acquire("s2", 5) is None


async def test_a_leader_of_an_emptied_redis_does_not_renew(redis: Redis) -> None:
    leadership = Leadership(redis)
    term = await leadership.acquire("s1", 5)
    assert term is not None
    await redis.flushall()
    assert not await leadership.renew("s1", term, 5)
    again = await leadership.acquire("s1", 5)
    assert again is not None
    assert again >= term


async def test_a_lease_says_how_long_it_lasts(redis: Redis) -> None:
    leadership = Leadership(redis)
    assert await leadership.left_s() == 0
    await leadership.acquire("a", 5)
    assert 4 < await leadership.left_s() <= 5
