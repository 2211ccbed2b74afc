-- A database in use, with something of everything: what an upgrade may find. Counters of each sort; events that are pending, carried, packed, and of an open
-- transaction's past; a backfill that was interrupted; consumers with open batches, failed events and dead letters; milestones; what was forwarded from elsewhere.

begin;
create table posts (id bigint primary key, like_count bigint not null default 0);
create table likes (id bigint generated always as identity primary key, post_id bigint references posts on delete cascade, user_id bigint, kind text default 'like', weight integer default 1);
create table votes (poll_id integer, at date) partition by range (at);
create table votes_old partition of votes for values from (minvalue) to ('2020-01-01');
create table votes_new partition of votes for values from ('2020-01-01') to (maxvalue);
create index on likes (post_id);
insert into posts select n from generate_series(1, 300) n;
insert into likes (post_id, user_id, kind) select n % 300 + 1, n, case n % 5 when 0 then 'laugh' else 'like' end from generate_series(1, 600) n;
insert into votes values (1, '2019-01-01'), (1, '2021-01-01'), (2, '2021-01-01');
commit;

begin;
select pgtally.create_counter('post_likes', source => 'likes', source_key => 'post_id', where_condition => 'kind = ''like''', source_data => '{user_id}',
    target => 'posts', target_key => 'id', target_column => 'like_count', milestones => '{2,5}', retain => '1 hour');
select pgtally.create_counter('weights', source => 'likes', source_key => 'post_id', sum_expression => 'weight + 1');
select pgtally.create_counter('votes', source => 'votes', source_key => 'poll_id');
select pgtally.create_counter('likes again', queue => 'post_likes', on_missing => 'insert');
select pgtally.create_counter('page_views', key_type => 'text');
select pgtally.create_counter('received_likes');
select pgtally.create_queue('mails', 'uuid');
commit;

-- The first is whole, the second waits to be added, the third is interrupted, the fourth has not begun.
begin;
select pgtally.reconcile_range(pgtally.begin_reconciliation('post_likes'), null);
select pgtally.reconcile_range(pgtally.begin_reconciliation('weights'), null);
commit;
begin;
select pgtally.apply_carried('post_likes');
select pgtally.reconcile_range(pgtally.begin_reconciliation('likes again'), 100);
select pgtally.register_consumer('post_likes', 'notifier'), pgtally.register_consumer('post_likes', 'archive'), pgtally.register_consumer('post_likes', 'paused one'),
    pgtally.register_consumer('mails', 'sender');
select pgtally.pause_consumer('post_likes', 'paused one');
commit;

-- Batches: what is packed, a claimed one, an open one.
begin;
insert into likes (post_id, user_id) select n % 300 + 1, n from generate_series(1, 700) n;
delete from likes where id % 100 = 1;
select pgtally.add_event('page_views', '/home'), pgtally.add_event('page_views', '/about', 3);
select pgtally.insert_event('mails', '00000000-0000-0000-0000-000000000001'::text, 1, '{"to": "somebody"}');
commit;
begin;
select pgtally.apply_batch('post_likes', max_keys => 100);
select pgtally.apply_batch('page_views');
commit;
begin;
select pgtally.claim_batch('post_likes', 'notifier', interval '1 minute', in_order => false);
select pgtally.next_batch('post_likes', 'archive');
commit;
begin;
select pgtally.receive_batch('received_likes', e.batch, e.keys, e.deltas)
from pgtally.batch b join pgtally.consumer c using (consumer_id), pgtally.export_batch(b.batch_id) e where c.name = 'notifier' and b.finished_at is null;
select pgtally.fail_event('post_likes', 'notifier', e.ev_id, e.ev_time, e.ev_key, e.ev_delta, e.ev_data, 1, 'no such address', case when e.ev_key = '7' then interval '0' end)
from pgtally.batch b join pgtally.consumer c using (consumer_id), pgtally.get_batch_events(b.batch_id) e where c.name = 'notifier' and b.finished_at is null and e.ev_key in ('7', '8');
select pgtally.finish_batch(b.batch_id, b.claim) from pgtally.batch b join pgtally.consumer c using (consumer_id) where c.name = 'notifier' and b.finished_at is null;
commit;

-- Pending for all of them.
begin;
insert into likes (post_id, user_id, weight) select 9, n, n from generate_series(1, 20) n;
update likes set post_id = 10 where post_id = 11;
insert into votes values (2, '2019-01-01'), (3, '2021-01-01');
select pgtally.add_event('page_views', '/home');
commit;
begin;
select pgtally.claim_batch('post_likes', 'notifier', interval '1 second', in_order => false);
commit;
