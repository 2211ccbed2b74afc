-- notify_applied(counter, version): tells whoever LISTENs on the channel that is named like the schema: {"counter": "post_likes", "version": "17"}.
--
-- With the commit, for which NOTIFY takes a lock that all notifying transactions of the cluster share.
create or replace function pgtally.notify_applied(counter pgtally.counter, version bigint) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $$
    select pg_notify(c.relnamespace::regnamespace::text, json_build_object('counter', counter.name, 'version', version::text)::text)
    from pg_class c where c.oid = 'pgtally.queue'::regclass
$$;
