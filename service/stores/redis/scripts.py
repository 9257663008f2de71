"""What runs inside Redis, in Lua: there a whole commit is one step, and nobody comes between.

A sequence is a hash: `r` is what these scripts compare, `o` `h` `l` and the numbered answers are sealed, and only
carried about here; a tombstone is `t` alone. r = revision (8 bytes), next place in the ring (1), lease in seconds (a
double), last used (a double); h has the revision from its ninth byte on, l the time of last use in its first eight.
"""

from __future__ import annotations

COMMIT = """
local call, sub = redis.call, string.sub
local HOUR = 3600000
local k, p, applied = 0, 0, {}

local function key() k = k + 1 return KEYS[k] end
local function arg() p = p + 1 return ARGV[p] end
local function double(text, at) return (struct.unpack('<d', text, at)) end

-- by Redis' own clock and from now on: no two clocks have to agree
local function keep(name, r)
  call('PEXPIRE', name, string.format('%.0f', double(r, 10) * 1000 + HOUR))
end

local function stands(name, revision)
  local r = call('HGET', name, 'r')
  return r and sub(r, 1, 8) == revision and r
end

local function drop(name, index, due, member)
  call('DEL', name)
  call('ZREM', index, member)
  call('ZREM', due, member)
end

local function put(name, index, due)
  local r, o, h, l, member, at, answers = arg(), arg(), arg(), arg(), arg(), arg(), tonumber(arg())
  return function(go)
    local fields = {}
    for n = 0, answers - 1 do
      fields[#fields + 1] = n
      fields[#fields + 1] = arg()
    end
    if not go then return end
    call('DEL', name)
    call('HSET', name, 'r', r, 'o', o, 'h', h, 'l', l, unpack(fields))
    keep(name, r)
    call('ZADD', index, 0, member)
    call('ZADD', due, at, member)
  end
end

local change = {}

function change.begin()
  local name, created = key(), double(arg(), 1)
  local finish = put(name, key(), key())
  local revision = sub(ARGV[p - 6], 1, 8)
  local r = call('HGET', name, 'r')
  local is_free = not r or double(r, 10) + double(r, 18) <= created
  finish(is_free)
  return is_free or sub(r, 1, 8) == revision
end

function change.replace()
  local name, before = key(), arg()
  local finish = put(name, key(), key())
  local revision = sub(ARGV[p - 6], 1, 8)
  local fits = stands(name, before)
  finish(fits)
  return fits or stands(name, revision)
end

function change.advance()
  local name, before, h, l, answer = key(), arg(), arg(), arg(), arg()
  local has_answer = answer ~= ''
  local r = call('HGET', name, 'r')
  if not r then return false end
  local place = string.byte(r, 9)
  if sub(r, 1, 8) ~= before then
    return sub(r, 1, 8) == sub(h, 9, 16) and call('HGET', name, 'h') == h
      and (not has_answer or call('HGET', name, (place + 15) % 16) == answer)
  end
  local after = has_answer and (place + 1) % 16 or place
  r = sub(h, 9, 16) .. string.char(after) .. sub(r, 10, 17) .. sub(l, 1, 8)
  if has_answer then
    call('HSET', name, 'r', r, 'h', h, 'l', l, place, answer)
  else
    call('HSET', name, 'r', r, 'h', h, 'l', l)
  end
  keep(name, r)
  return true
end

function change.touch()
  local name, before, l = key(), arg(), arg()
  local r = stands(name, before)
  if not r then return false end
  call('HSET', name, 'r', sub(r, 1, 17) .. sub(l, 1, 8), 'l', l)
  keep(name, r)
  return true
end

function change.done()  -- the end of a sequence; `end` is a word of Lua
  local name, index, due, before, t, member = key(), key(), key(), arg(), arg(), arg()
  if before ~= '' and not stands(name, before) then
    return call('HGET', name, 't') == t
  end
  drop(name, index, due, member)
  call('HSET', name, 't', t)
  call('PEXPIRE', name, HOUR)
  return true
end

function change.forget()
  local name, index, due, before, member = key(), key(), key(), arg(), arg()
  if not stands(name, before) then return false end
  drop(name, index, due, member)
  return true
end

while p < #ARGV do
  applied[#applied + 1] = change[arg()]() and 1 or 0
end
return applied
"""

DUE = """
-- of the sequences to look at: put off those that were used since, forget those that are gone, name the rest. Who is
-- told a name is to end it; others are told only if he has not in a while
local due, now = KEYS[1], tonumber(ARGV[1])
local sequences, indexes, while_seconds = ARGV[3], ARGV[4], 30

local function index_of(member)
  local first = string.find(member, '\\0\\1', 1, true)
  local second = string.find(member, '\\0\\1', first + 2, true)
  return indexes .. string.sub(member, first + 2, second - 1)
end

local over = {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])) do
  local r = redis.call('HGET', sequences .. member, 'r')
  local expires = r and #r == 25 and (struct.unpack('<d', r, 10)) + (struct.unpack('<d', r, 18))
  if not r then
    redis.call('ZREM', due, member)
    redis.call('ZREM', index_of(member), member)
  elseif expires and expires > now then
    redis.call('ZADD', due, string.format('%.17g', expires), member)
  else
    redis.call('ZADD', due, string.format('%.17g', now + while_seconds), member)
    over[#over + 1] = {member, r}
  end
end
return over
"""
