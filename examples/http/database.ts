import type { Generated } from 'kysely'

import { defineCounters } from '../../src/index.ts'

export interface Database {
  users: { id: number; name: string }
  posts: { id: number; author_id: number; title: string; like_count: Generated<number> }
  likes: { post_id: number; user_id: number }
  notifications: { id: Generated<number>; user_id: number; post_id: number; liked_by: number }
}

export const tables = `
  create table users (id int primary key, name text not null);
  create table posts (id int primary key, author_id int not null references users, title text not null, like_count int not null default 0);
  create table likes (post_id int not null references posts on delete cascade, user_id int not null references users on delete cascade, primary key (post_id, user_id));
  create table notifications (
    id int generated always as identity primary key,
    user_id int not null references users on delete cascade,
    post_id int not null references posts on delete cascade,
    liked_by int not null references users on delete cascade,
    unique (post_id, liked_by));
  insert into users select n, (array['Ada', 'Grace', 'Edsger', 'Barbara', 'Donald'])[1 + n % 5] || ' ' || n from generate_series(1, 100) n;
  insert into posts (id, author_id, title) values (1, 1, 'Notes on the Analytical Engine'), (2, 2, 'Nanoseconds')`

export const counters = defineCounters<Database>()({
  post_likes: {
    // With `data`, each like is an event of its own, which says who gave it: for the notifications.
    source: { table: 'likes', key: 'post_id', data: ['user_id'] },
    target: { table: 'posts', key: 'id', column: 'like_count' },
  },
})
