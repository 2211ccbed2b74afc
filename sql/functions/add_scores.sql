-- add_scores(score, landmark, other_score, other_landmark): the sum of two decayed scores, relative to the later landmark.
--
-- A score with the landmark L stands for score * 2^L, in half-lives since 1970. What is left when as much was taken back as had been given is rounding, and becomes 0: up to a millionth of that, but
-- no more than a billionth of an event of now (an audit takes a millionth for a drift) or a 10^12th of that, as it may also be what an old event weighs, beside many that were taken back at once. So does what is
-- too small to be multiplied (power_of_two).
create or replace function pgtally.add_scores(score double precision, landmark integer, other_score double precision, other_landmark integer) returns double precision
language sql immutable parallel safe as $$
    select case
        when abs(score * pgtally.power_of_two(landmark - greatest(landmark, other_landmark)) + other_score * pgtally.power_of_two(other_landmark - greatest(landmark, other_landmark)))
            > greatest(1e-150, least(1e-6 * abs(score * pgtally.power_of_two(landmark - greatest(landmark, other_landmark))), greatest(1e-9, 1e-12 * abs(score * pgtally.power_of_two(landmark - greatest(landmark, other_landmark))))))
        then score * pgtally.power_of_two(landmark - greatest(landmark, other_landmark)) + other_score * pgtally.power_of_two(other_landmark - greatest(landmark, other_landmark))
        else 0 end
$$;
