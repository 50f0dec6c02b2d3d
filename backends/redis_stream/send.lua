-- Takes a batch whole or nothing of it, and the mark with it: the one step that makes delivery exactly once. Follows
-- held.lua. One call does a bounded amount of work, however long the stream is.
--
-- ARGV[2]  the mark that must be held, ARGV[3] the mark that the batch leaves
-- ARGV[4]  run id, '-' for none
-- ARGV[5]  maxlen, 0 for no bound
-- ARGV[6]  'hold' or 'trim': what happens at maxlen to entries that a consumer group has not acknowledged
-- ARGV[7]  '1' if headers follow each payload
-- ARGV[8]  how many names of groups follow: only these count; 0 for all
-- then     the names, and the payloads; with headers, each is followed by a JSON array of names and values, '' for none
--
-- Returns {'taken', trimmed, trimmed by this call}, {'conflict', held mark, trimmed}, {'foreign', value}, or
-- {'full', room, trimmed, reason, id, group}, where the reason is
--   'unread'          the group has read nothing beyond the id
--   'unacknowledged'  the group has not acknowledged the entry with the id
--   'missing'         the stream has no such group
--   'run'             no group reads the stream, and this run delivered all that is left of it
--   'size'            the batch alone is larger than maxlen

local SPARE = 1000 -- entries that a call may trim beyond the batch's size, where the stream is beyond maxlen
local PAGE = 100 -- entries that are in the script's memory at a time
local STEPS = 500 -- references to entries that no longer exist, looked at by one call

local run, maxlen, overflow, named = ARGV[4], tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[8])
local first, step = 9 + named, 1 + tonumber(ARGV[7])
local size = (#ARGV - first + 1) / step

local record, info, value = held()
if not record then
    return {'foreign', value}
end
if record.mark ~= ARGV[2] then
    return {'conflict', record.mark, record.trimmed}
end
if run ~= '-' and run ~= record.run then
    record.run, record.floor = run, info and info['last-generated-id'] or '0-0'
end
local length = info and info['length'] or 0

-- Returns the oldest entry that still exists and that the group has read, but not acknowledged; nil if there is none.
-- References to entries that were deleted or trimmed are passed over. Where there are more of them than one call looks
-- at, returns an entry with none before it that is needed: what lies before it may go, and the next call gets further.
local function oldest_unacknowledged(group, steps)
    local at = info['first-entry'][1]
    for step = 1, steps do
        local pending = redis.call('XPENDING', stream, group, at, '+', 1)[1]
        if not pending then
            return nil, step
        end
        local entry = redis.call('XRANGE', stream, pending[1], '+', 'COUNT', 1)[1]
        if not entry then
            return nil, step
        end
        at = entry[1]
        if at == pending[1] then
            return at, step
        end
    end
    return at, steps
end

-- Returns the id up to which all counted groups are done, whether that id itself is among it, and who is the last, for
-- the reply 'full'; nil if there is no group.
local function done_by_all()
    local groups, counted = {}, {}
    for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
        local group = by_name(flat)
        groups[group['name']] = group
        counted[#counted + 1] = group['name']
    end
    if named > 0 then
        counted = {unpack(ARGV, 9, 8 + named)}
    end
    local steps = STEPS
    local bound, inclusive, reason, holder
    local function needs(id, itself, why, name)
        if not bound or is_before(id, bound) or (id == bound and inclusive and itself) then
            bound, inclusive, reason, holder = id, not itself, why, name
        end
    end
    for _, name in ipairs(counted) do
        local group = groups[name]
        if not group then
            return '0-0', true, 'missing', name
        end
        needs(group['last-delivered-id'], false, 'unread', name)
        if group['pending'] > 0 then
            local id, used = oldest_unacknowledged(name, math.max(1, steps))
            steps = steps - used
            if id then
                needs(id, true, 'unacknowledged', name)
            end
        end
    end
    return bound, inclusive, reason, holder
end

-- Counts the oldest entries up to an id, but no more than `most`.
local function count(bound, inclusive, most)
    local found, from, to = 0, '-', inclusive and bound or '(' .. bound
    while found < most do
        local asked = math.min(PAGE, most - found)
        local page = redis.call('XRANGE', stream, from, to, 'COUNT', asked)
        found = found + #page
        if #page < asked then
            break
        end
        from = '(' .. page[#page][1]
    end
    return found
end

-- How many of the oldest entries are trimmed, and how many of those nobody is known to have read.
local trimmed, unread = 0, 0
if maxlen > 0 and length + size > maxlen then
    local most = math.min(length + size - maxlen, size + SPARE, length)
    local bound, inclusive, reason, holder
    if length > 0 then
        bound, inclusive, reason, holder = done_by_all()
    end
    local read = bound and count(bound, inclusive, most) or 0
    if overflow == 'trim' or (not bound and run == '-') then
        trimmed, unread = most, most - read
    elseif bound then
        trimmed = read
    else
        trimmed = length > 0 and count(record.floor, true, most) or 0
        unread = trimmed
    end
    -- The stream may not grow beyond maxlen; where it is beyond that already, it may not grow.
    local room = math.max(0, maxlen - length) + trimmed
    if overflow == 'hold' and room < size then
        if not bound then
            reason = length > 0 and run ~= '-' and 'run' or 'size'
        end
        return {'full', room, record.trimmed, reason, bound or '', holder or ''}
    end
end

-- Read before anything is written: one that cannot be read must not leave half a batch.
local headers = {}
if step == 2 then
    for i = first, #ARGV, step do
        headers[i] = ARGV[i + 1] ~= '' and cjson.decode(ARGV[i + 1]) or {}
    end
end

-- What a user may lack the right to comes before the first entry, or a batch would be taken without its mark. This
-- first write is also where a server that is out of memory says so.
redis.call('HSET', marks, outbox, value)
if trimmed > 0 then
    redis.call('XTRIM', stream, 'MAXLEN', '=', length - trimmed)
end
for i = first, #ARGV, step do
    if step == 1 then
        record.last = redis.call('XADD', stream, '*', 'data', ARGV[i])
    else
        record.last = redis.call('XADD', stream, '*', 'data', ARGV[i], unpack(headers[i]))
    end
end
local added = describe_stream()['entries-added']
record.added = added and string.format('%.0f', added) or '-'
record.digest = digest(ARGV[#ARGV - step + 1])
record.trimmed, record.mark = record.trimmed + unread, ARGV[3]
redis.call('HSET', marks, outbox, compose(record))
return {'taken', record.trimmed, unread}
