-- Takes a batch whole, or nothing of it, and with it the position; the one step that makes delivery exactly once.
--
-- KEYS[1]  the stream
-- KEYS[2]  a hash: outbox id -> the position held for it
-- ARGV[1]  outbox id
-- ARGV[2]  the position the batch starts after, ARGV[3] the position it ends at
-- ARGV[4]  maxlen, 0 for no bound
-- ARGV[5]  'hold' or 'trim': what happens at maxlen to entries that a consumer group has not acknowledged
-- ARGV[6]  the groups that count, separated by commas; '' for all
-- ARGV[7…] the payloads
--
-- Returns {'taken'}, {'conflict', held position} or {'full', room, group, its oldest unacknowledged id}.

local stream, positions, outbox = KEYS[1], KEYS[2], ARGV[1]
local maxlen, overflow, counted = tonumber(ARGV[4]), ARGV[5], ARGV[6]
local first = 7
local size = #ARGV - first + 1

-- Positions are compared as text: Lua's numbers would round those beyond 2^53.
local held = redis.call('HGET', positions, outbox) or '0'
if held ~= ARGV[2] then
    return {'conflict', held}
end

-- Fails here, before anything is written, if the key holds another type.
local length = redis.call('XLEN', stream)

local function counts(group)
    return counted == '' or string.find(',' .. counted .. ',', ',' .. group .. ',', 1, true) ~= nil
end

-- Stream ids as two numbers each half: enough for milliseconds until the year 287396.
local function before(a, b)
    local a1, a2 = string.match(a, '^(%d+)-(%d+)$')
    local b1, b2 = string.match(b, '^(%d+)-(%d+)$')
    if a1 ~= b1 then
        return tonumber(a1) < tonumber(b1)
    end
    return tonumber(a2) < tonumber(b2)
end

-- The oldest id that some group still needs. `open` says that this id itself is acknowledged: only what is
-- beyond it is needed.
local function oldest_needed()
    local oldest, open, holder
    local function needs(id, beyond, name)
        if not oldest or before(id, oldest) or (id == oldest and open and not beyond) then
            oldest, open, holder = id, beyond, name
        end
    end
    for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
        local info = {}
        for i = 1, #flat, 2 do
            info[flat[i]] = flat[i + 1]
        end
        if counts(info['name']) then
            needs(info['last-delivered-id'], true, info['name'])
            if info['pending'] > 0 then
                needs(redis.call('XPENDING', stream, info['name'])[2], false, info['name'])
            end
        end
    end
    return oldest, open, holder
end

local trim = nil
if maxlen > 0 and length + size > maxlen then
    trim = '~' -- whole nodes only: much cheaper, and a little more stays
    if overflow == 'hold' and redis.call('EXISTS', stream) == 1 then
        local oldest, open, holder = oldest_needed()
        if oldest then
            local excess = length + size - maxlen
            local last = open and oldest or '(' .. oldest
            local free = #redis.call('XRANGE', stream, '-', last, 'COUNT', excess)
            if free < excess then
                return {'full', math.max(0, maxlen - length + free), holder, oldest}
            end
            trim = '='
        end
    end
end

-- What a user may lack the right to comes before the first entry, or a batch would be taken without its position.
-- This first write is also where a server that is out of memory says so.
redis.call('HSET', positions, outbox, held)
if trim then
    redis.call('XTRIM', stream, 'MAXLEN', trim, math.max(0, maxlen - size))
end
for i = first, #ARGV do
    redis.call('XADD', stream, '*', 'data', ARGV[i])
end
redis.call('HSET', positions, outbox, ARGV[3])
return {'taken'}
