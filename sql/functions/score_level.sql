-- score_level(score, landmark, lowest): where a decayed score stands in the index: its logarithm in sixteenths of a half-life. NULL for no score, and below the lowest that counts.
--
-- It changes much less often than the score. While it does not, an update writes no index entry (HOT).
create or replace function pgtally.score_level(score double precision, landmark integer, lowest integer) returns integer
language sql immutable parallel safe
return case when score > 0 and floor(16 * (landmark + ln(score) / ln(2::double precision))) >= lowest then floor(16 * (landmark + ln(score) / ln(2::double precision)))::integer end;
