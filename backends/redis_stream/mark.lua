-- Tells which mark is held. Follows held.lua.
--
-- ARGV[2]  '1' to write what is stored without a change, so that replicas and the append-only file get it
--
-- Returns {'held', mark, trimmed} or {'foreign', value}.

local record, _, value = held()
if not record then
    return {'foreign', value}
end
if ARGV[2] == '1' then
    redis.call('HSET', marks, outbox, value)
end
return {'held', record.mark, record.trimmed}
