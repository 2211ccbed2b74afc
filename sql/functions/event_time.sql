-- event_time(moment): a time as events bring it along: whole seconds, so that those of a statement can be summed; NULL for one outside the years 1 to 9999, with which one cannot
-- compute everywhere. Two spellings of one row's time, when it comes and when it goes, are the same.
--
-- Inlined into the triggers, so it has no settings; its body was parsed when it was made, and depends on no search_path.
create or replace function pgtally.event_time(moment timestamptz) returns timestamptz
language sql immutable parallel safe
return case when moment >= '0001-01-01 00:00:00+00' and moment < '10000-01-01 00:00:00+00' then date_bin('1 second', moment, '2000-01-01 00:00:00+00') end;
